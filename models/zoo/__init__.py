"""Small weights trained here on real data; each file stands beside its model card and the script that trains it."""
