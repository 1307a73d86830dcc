//! What either side may have seen, given what its peer did. The rules are TCP's, and hold on a direct connection.

use super::plan::{Ending, Script};
use super::talk::Seen;

/// How a connection ended, as far as the script determines it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// Both directions ended by FIN, everything arrived.
    InOrder,
    /// The client reset it, and the server must have seen that.
    ClientReset,
    /// The server reset it, and the client must have seen that.
    ServerReset,
    /// One side closed or died in mid-stream: the other sees EOF or a reset, depending on what was on the way.
    Abandoned,
}

/// Checks both sides' reports. `Err` says what is against TCP's rules.
pub fn judge(script: &Script, client: &Seen, server: &Seen) -> Result<Finish, String> {
    let sides = [("client", client, server), ("server", server, client)];
    for (name, seen, peer) in sides {
        direction(seen, peer).map_err(|why| format!("{name} {why}"))?;
    }
    let rude = sides
        .iter()
        .zip([&script.client, &script.server])
        .find_map(|(side, plan)| match plan.ending {
            Ending::HalfClose { .. } => None,
            ending => Some((side.0, side.2, ending)),
        });
    let Some((name, other, ending)) = rude else {
        return in_order(script, client, server);
    };
    match ending {
        Ending::Reset { .. } if other.eof || !other.reset => Err(format!("{name} reset, but its peer saw {other:?}")),
        Ending::Reset { .. } if name == "client" => Ok(Finish::ClientReset),
        Ending::Reset { .. } => Ok(Finish::ServerReset),
        _ if !other.eof && !other.reset => Err(format!("{name} is gone, but its peer saw no end: {other:?}")),
        _ => Ok(Finish::Abandoned),
    }
}

/// As [`judge`], for a connection that was cut by others at an unknown point: either side has a prefix of the other's bytes and has seen the
/// end, as an EOF only where the data really ended there.
pub fn judge_cut(script: &Script, client: &Seen, server: &Seen) -> Result<(), String> {
    let sides = [("client", client, server), ("server", server, client)];
    for ((name, seen, peer), plan) in sides.into_iter().zip([&script.client, &script.server]) {
        direction(seen, peer).map_err(|why| format!("{name} {why}"))?;
        let left = !matches!(plan.ending, Ending::HalfClose { .. });
        if !seen.eof && !seen.reset && !left {
            return Err(format!("{name} saw no end: {seen:?}"));
        }
    }
    for (name, seen, peer, ending) in [
        ("client", client, server, script.server.ending),
        ("server", server, client, script.client.ending),
    ] {
        // A close or a death ends the data too.
        let ended = peer.finished || matches!(ending, Ending::Close { .. });
        if seen.eof && !ended {
            return Err(format!("{name} saw an EOF that nobody sent: {seen:?}, peer: {peer:?}"));
        }
    }
    Ok(())
}

/// The data towards `seen`: a prefix of what `peer` wrote, and EOF only after all of it.
fn direction(seen: &Seen, peer: &Seen) -> Result<(), String> {
    if !seen.faults.is_empty() {
        return Err(format!("faults: {:?}", seen.faults));
    }
    if seen.read.least > peer.written.most {
        return Err(format!("read {:?} of {:?} written", seen.read, peer.written));
    }
    // A close() without a shutdown before it sends a FIN too, when nothing was unread; its data is complete then.
    if seen.eof && seen.read.most < peer.written.least {
        return Err(format!("saw EOF after {:?} of {:?}", seen.read, peer.written));
    }
    Ok(())
}

fn in_order(script: &Script, client: &Seen, server: &Seen) -> Result<Finish, String> {
    for (name, seen, peer, expected) in [
        ("client", client, server, script.server.total),
        ("server", server, client, script.client.total),
    ] {
        let complete = seen.read.least == expected && peer.written.least == expected;
        if !(complete && seen.eof && !seen.reset && seen.finished) {
            return Err(format!(
                "{name} should have read {expected} bytes and EOF, saw {seen:?}"
            ));
        }
    }
    Ok(Finish::InOrder)
}
