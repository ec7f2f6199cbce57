"""What a person looks at: a run's report as one HTML file, its retention table on a terminal."""
