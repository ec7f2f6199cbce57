"""The encoder of all kinds, its pretext tasks and their files. Importing it imports torch and timm."""

from medcoss.model import torchvision_operators as torchvision_operators  # first: timm needs it
