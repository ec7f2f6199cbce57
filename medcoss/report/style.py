"""The report's style sheet: light, printable, narrow screens too; system fonts, nothing fetched."""

STYLE = """
:root { --ink:#1d2733; --soft:#5b6876; --line:#dfe4ea; --paper:#ffffff; --ground:#f4f6f8; --accent:#2563ab; }
* { box-sizing: border-box; }
body { margin:0; background:var(--ground); color:var(--ink);
  font:15px/1.5 system-ui,"Segoe UI",Helvetica,Arial,sans-serif; }
.frame { display:grid; grid-template-columns:13rem minmax(0,70rem); gap:2rem; padding:1.5rem 2rem 4rem;
  justify-content:center; }
nav { position:sticky; top:1.5rem; align-self:start; font-size:.9rem; }
nav a { display:block; padding:.25rem .6rem; color:var(--soft); text-decoration:none;
  border-left:3px solid var(--line); }
nav a:hover { color:var(--accent); border-color:var(--accent); }
h1 { font-size:1.7rem; margin:.2rem 0; } h2 { font-size:1.2rem; margin:0 0 .6rem; } h3 { font-size:1rem;
  margin:1.1rem 0 .4rem; }
p { margin:.4rem 0; max-width:56rem; } .soft { color:var(--soft); } small { color:var(--soft); }
section { background:var(--paper); border:1px solid var(--line); border-radius:10px; padding:1.2rem 1.4rem;
  margin-bottom:1.2rem; }
.cards { display:grid; grid-template-columns:repeat(auto-fit,minmax(9.5rem,1fr)); gap:.8rem;
  margin:1rem 0 1.4rem; }
.card { background:var(--paper); border:1px solid var(--line); border-radius:10px; padding:.7rem .9rem; }
.card b { display:block; font-size:1.35rem; } .card span { color:var(--soft); font-size:.85rem; }
.tiles { display:grid; grid-template-columns:repeat(auto-fit,minmax(24rem,1fr)); gap:1rem; }
.scroll { overflow-x:auto; }
table { border-collapse:collapse; font-variant-numeric:tabular-nums; }
th,td { padding:.38rem .7rem; border-bottom:1px solid var(--line); text-align:left; vertical-align:top; }
th { font-weight:600; color:var(--soft); font-size:.88rem; }
td.n,th.n { text-align:right; } td.n { white-space:nowrap; }
table.heat td.n { text-align:center; min-width:5.2rem; border:2px solid var(--paper); border-radius:6px; }
tr.base td,tr.base th { background:#f1f3f5; color:var(--soft); }
tr.rule td,tr.rule th { border-top:2px solid var(--line); }
figure { margin:0; } figcaption { color:var(--soft); font-size:.88rem; margin-bottom:.3rem; }
img { max-width:100%; display:block; border-radius:4px; } img.pixels { image-rendering:pixelated; }
pre { background:var(--ground); padding:.8rem; border-radius:6px; overflow-x:auto; font-size:.82rem;
  margin:.4rem 0; }
summary { cursor:pointer; color:var(--accent); } code { font-size:.88em; }
mark { background:#ffe9b8; border-radius:3px; padding:0 .2em; } mark.right { background:#cdeed8; }
mark sub { color:var(--soft); }
.snippet { border-left:3px solid var(--line); padding:.1rem .7rem; margin:.35rem 0; font-size:.9rem; }
@media (max-width:60rem) { .frame { grid-template-columns:minmax(0,1fr); padding:1rem; } nav { position:static;
  } }
@media print { nav { display:none; } .frame { grid-template-columns:1fr; } section { break-inside:avoid; } }
"""
