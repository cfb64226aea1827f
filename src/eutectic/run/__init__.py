"""jobs -> tensors -> output: threads, the memory bound, merges computed on read."""
