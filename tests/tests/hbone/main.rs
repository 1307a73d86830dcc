//! HBONE, from outside: pods on two nodes that know nothing of a mesh, each node with an agent, a proxy and certificates from files; and Envoy, as it
//! speaks HBONE itself.

mod envoy;
mod exactness;
mod http;
mod interop;
mod nodes;
mod place;
mod reach;
mod tcp;
mod waypoint;
