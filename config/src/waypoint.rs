//! What a waypoint serves.

mod place;
mod served;

pub use place::{Going, Lead, Place, Places};
pub use served::{Served, Waypoint};
