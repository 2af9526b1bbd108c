//! Drawings of rules: hooks, the chains they lead through, and where each rule sends a
//! packet. Made from the rules and from what escapes through them, without any other
//! program, the same every time.

mod dot;
mod mermaid;
pub mod model;
pub mod svg;

use super::escapes::Escape;
use super::ruleset::Ruleset;
use model::Drawing;

/// How a drawing is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DrawingFormat {
    Svg,
    Mermaid,
    Dot,
}

/// Draws a ruleset. `escapes` are those of this ruleset.
pub fn draw(ruleset: &Ruleset, escapes: &[Escape], format: DrawingFormat) -> String {
    let drawing = Drawing::of(ruleset, escapes);
    match format {
        DrawingFormat::Svg => svg::write(&drawing),
        DrawingFormat::Mermaid => mermaid::write(&drawing),
        DrawingFormat::Dot => dot::write(&drawing),
    }
}
