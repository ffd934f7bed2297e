"""Images in: where they come from, how they are decoded, and which of them make batch n."""
