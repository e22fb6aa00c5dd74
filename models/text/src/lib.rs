//! Text-only decoders.
