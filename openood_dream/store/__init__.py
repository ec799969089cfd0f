"""What is kept on disk: files that are whole or not there, and artifacts named by what determines them."""
