//! The rules by which one of a frontend's backends is chosen.

mod load;

pub use load::InFlight;
