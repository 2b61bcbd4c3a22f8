"""Images from disk: labelled sets for training and evaluation, and streams of batches for inference.

Understood are the CIFAR-10 and CIFAR-100 *binary* folders, folders of image files, and ``.npy`` / ``.npz`` arrays. No
format that can hold code is read: Python pickles, and numpy arrays of objects, are refused.
"""

from .class_numbers import class_numbers
from .labelled import Labelled, LabelledSource, load_labelled, open_labelled
from .source import ImageSource, Skipped, open_images

__all__ = ["ImageSource", "Labelled", "LabelledSource", "Skipped", "class_numbers", "load_labelled", "open_images", "open_labelled"]
