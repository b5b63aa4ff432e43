"""Pneumoscope: tells pneumonia from normal on chest radiographs, proves how well, and shows why.

Research use only. Nothing here is a medical device.
"""

__version__ = "0.1.0"
