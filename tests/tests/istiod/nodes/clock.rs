//! Clocks that are not right: a node whose clock runs ahead, or behind, of the other's and of istiod's (Debian's `faketime`, which lies to one program).
