//! The rules by which one of a frontend's backends is chosen, a file each.

mod load;
mod stay;
mod turns;

pub use load::InFlight;
pub use stay::Tags;
