"""The imagination: outliers, or inliers, of the ID classes, from embeddings to images."""
