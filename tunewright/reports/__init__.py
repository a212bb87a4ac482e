"""What all reports share: the frame of their pages, charts, and how figures are written."""
