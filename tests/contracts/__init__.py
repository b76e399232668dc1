"""What every implementation of a seam must do, as classes to inherit."""
