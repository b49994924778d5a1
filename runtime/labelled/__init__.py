"""Labelled data to judge a bundle by: folders of classes, files of labels, arrays. No torch."""
