"""What performance claims rest on: one command each, ratios of interleaved runs. Nothing here is imported by the
package."""
