//! One side of a conversation, on the socket that is its standard input: `peer GENRE SEED client|server`. See `underpass_tests::conversation`.

#![forbid(unsafe_code)]

fn main() {
    let mut arguments = std::env::args().skip(1);
    let (Some(genre), Some(seed), Some(side)) = (arguments.next(), arguments.next(), arguments.next()) else {
        panic!("usage: peer mixed|long SEED client|server");
    };
    underpass_tests::conversation::run_child(&genre, seed.parse().expect("a seed is a number"), &side);
}
