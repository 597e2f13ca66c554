"""A trained model as a page that runs in a browser, without a server or a network."""
