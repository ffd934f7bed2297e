"""Methods of GAN transfer, one file each, behind seven hooks."""
