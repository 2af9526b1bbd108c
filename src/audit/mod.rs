//! Audit: what is intercepted, what escapes, and whether the kernel agrees.

pub mod compare;
pub mod describe;
