"""One trainer per method, in OpenOOD's protocol. Importing `known` registers all of them."""
