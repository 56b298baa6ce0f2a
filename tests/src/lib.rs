//! Integration tests across the workspace.

/// The examples of the workspace's README, as doctests.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
pub struct Readme;
