"""Where images come from: files of one's own, published sets, folders of pictures."""
