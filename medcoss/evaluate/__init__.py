"""How good a run's encoder is: a k-nearest-neighbour probe of every modality after every stage."""
