# medcoss in a container. CPU: docker build -t medcoss .   GPU: docker build --build-arg FLAVOUR=cuda -t medcoss:cuda .
# The image holds code and libraries only. Data, shards and runs are mounted, so no patient's data enters a layer:
# The salt is mounted too: made inside, it would be gone with the container, and later sets would not fit this one's.
#   docker run --rm -v "$PWD/raw:/medcoss/raw" -v "$PWD/shards:/medcoss/shards" -v "$PWD/runs:/medcoss/runs" \
#     -v "$HOME/.config/medcoss:/root/.config/medcoss" medcoss preprocess ct --out shards/ct
FROM python:3.11-slim-bookworm
ARG FLAVOUR=cpu
WORKDIR /medcoss
# procps and a compiler are not needed: every native part comes as a wheel. openssh-client and pdsh start other hosts.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends openssh-client pdsh \
 && rm -rf /var/lib/apt/lists/*
COPY requirements requirements
RUN pip install --no-cache-dir -r requirements/base.txt -r requirements/${FLAVOUR}.txt
COPY pyproject.toml README.md LICENSE ./
COPY medcoss medcoss
COPY preprocess preprocess
COPY launch launch
COPY shards/README.md shards/README.md
RUN pip install --no-cache-dir --no-deps --no-build-isolation .
ENV PYTHONUNBUFFERED=1
CMD ["medcoss", "doctor"]
