//! LLaVA.
