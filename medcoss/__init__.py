"""medcoss: continual self-supervised learning over medical modalities."""
