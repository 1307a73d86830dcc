//! Two peers that talk by a script and verify each other's every byte.
//!
//! One idea: **a script is derived from a seed, so what either side will send is known to the other, and what either may see at the
//! end follows from what its peer did, whatever lies between them.** The same script runs over a direct connection and
//! through a proxy, and is judged by the same rules ([`judge`]): a relay that can't be told from a wire passes.
//!
//! [`Plan`] says what one side does: how much it writes in what pieces, when it stalls, how it ends. [`talk`] carries a plan out on
//! a socket and reports what it saw ([`Seen`]). A side may live in a process of its own ([`ChildPeer`]), to be killed in
//! mid-sentence.

mod child;
mod judge;
mod pattern;
mod plan;
mod talk;
mod voices;

pub use child::{ChildPeer, run_child};
pub use judge::{Finish, judge, judge_cut};
pub use pattern::{Pattern, Speech};
pub use plan::{Ending, Genre, Plan, Script};
pub use talk::{Count, Seen, talk, talk_reporting};
