"""Methods behind a tower of images, which hand fewer patches to what reads them, one paper a file."""
