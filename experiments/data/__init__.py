"""Where rows come from: generators, file formats, caches, and their order."""
