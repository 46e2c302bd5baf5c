"""Files here and in object stores: URIs, artifacts, checksums, retries."""
