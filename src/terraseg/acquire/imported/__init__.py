"""Images from files: Sentinel-2 products, HLS, exports and other GeoTIFFs become scenes."""
