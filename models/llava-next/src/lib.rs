//! LLaVA-NeXT.
