"""Results as a page for the browser and as figures for a paper."""
