//! Who may ask for what: the same policies in Envoy and in us, the same requests to both.

mod generated;
mod place;
mod recorded;
