//! Integration tests across the workspace, one module per question.
mod layers;
