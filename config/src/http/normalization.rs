//! Paths that stand for the same are written alike before they are looked at (Istio's `meshConfig.pathNormalization`; Envoy's `normalize_path`, `merge_slashes`,
//! `path_with_escaped_slashes_action`): a route or a policy for `/admin` is not gone around by `/x/../admin`.
//!
//! What the endpoint gets is what was looked at. The query stays.

use std::borrow::Cow;

/// How much of it is done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PathNormalization {
    /// Nothing. The default, as Envoy's.
    #[default]
    None,
    /// Dot segments are resolved, also escaped ones; backslashes are slashes; what has to be escaped is (RFC 3986, section 6.2.2, without the case of
    /// escapes). Istio's default.
    Base,
    /// And several slashes are one.
    MergeSlashes,
    /// And slashes and backslashes that are escaped are none that are, before all else.
    DecodeAndMergeSlashes,
}

impl PathNormalization {
    /// The path, which begins with a slash and has no query; none if it has an escaped NUL, which ends a text for some.
    pub fn apply(self, path: &str) -> Option<Cow<'_, str>> {
        // Most have nothing but segments of plain characters.
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'/' | b'-' | b'_' | b'~');
        let is_normal = !path.contains("//") && path.bytes().all(is_plain);
        if self == Self::None || is_normal {
            return Some(path.into());
        }
        let decoded = match self {
            Self::DecodeAndMergeSlashes => decoded(path),
            _ => path.into(),
        };
        let resolved = resolved(&decoded)?;
        Some(match self {
            Self::MergeSlashes | Self::DecodeAndMergeSlashes => merged(&resolved).into(),
            _ => resolved.into(),
        })
    }
}

/// With slashes and backslashes for their escapes.
fn decoded(path: &str) -> Cow<'_, str> {
    if !path.contains('%') {
        return path.into();
    }
    let path = path.replace("%2F", "/").replace("%2f", "/");
    path.replace("%5C", "\\").replace("%5c", "\\").into()
}

/// One slash for several; two at the end, if there is nothing else (as in Envoy).
fn merged(path: &str) -> String {
    if !path.contains("//") {
        return path.to_owned();
    }
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let end = if path.ends_with('/') { "/" } else { "" };
    format!("/{}{end}", parts.join("/"))
}

/// A dot at the beginning of `rest`, perhaps escaped: its length.
fn dot(rest: &[u8]) -> usize {
    match rest {
        [b'.', ..] => 1,
        [b'%', b'2', b'e' | b'E', ..] => 3,
        _ => 0,
    }
}

const fn is_slash(byte: u8) -> bool {
    byte == b'/' || byte == b'\\'
}

/// What a dot that follows a slash begins (`is_literal`: neither of them in another writing), and how many bytes of `rest`, which is behind it, belong to it.
enum Dots {
    /// The segment before it stays.
    Same(usize),
    /// The segment before it goes.
    Up(usize),
    /// It is a name's.
    Name,
}

fn dots(rest: &[u8], is_literal: bool) -> Dots {
    let after = |rest: &[u8], is_literal| match rest {
        [] => Some(0),
        [byte, ..] if is_slash(*byte) => Some(1),
        // What some servers take for parameters of the segment goes with it: `/..;a/` is `/../`.
        [b';', ..] if is_literal => Some(
            rest.iter()
                .position(|byte| *byte == b'/')
                .map_or(rest.len(), |at| at + 1),
        ),
        _ => None,
    };
    if let Some(slash) = after(rest, is_literal) {
        return Dots::Same(slash);
    }
    let second = dot(rest);
    match after(&rest[second..], is_literal && second == 1) {
        Some(slash) if second > 0 => Dots::Up(second + slash),
        _ => Dots::Name,
    }
}

/// With dot segments resolved, as URLs are by browsers, and nothing escaped that need not be.
fn resolved(path: &str) -> Option<String> {
    let bytes = path.as_bytes();
    let mut out = Written::default();
    let mut at = 0;
    while at < bytes.len() {
        let length = dot(&bytes[at..]);
        if length > 0 {
            let is_literal = length == 1 && at > 0 && bytes[at - 1] == b'/';
            at += length;
            match dots(&bytes[at..], is_literal) {
                Dots::Same(more) if out.ends_with_slash() => at += more,
                Dots::Up(more) if out.ends_with_slash() => {
                    at += more;
                    out.leave_segment();
                }
                _ => out.push(b'.'),
            }
            continue;
        }
        match bytes[at] {
            b'\\' => out.push(b'/'),
            b'%' => match escape(&bytes[at..]) {
                None => out.push_lone_percent(),
                Some(0) => return None,
                Some(byte) => {
                    match is_unreserved(byte) {
                        true => out.push(byte),
                        false => out.bytes.extend_from_slice(&bytes[at..at + 3]),
                    }
                    at += 2;
                }
            },
            byte if is_escaped(byte) => out.bytes.extend_from_slice(format!("%{byte:02X}").as_bytes()),
            byte => out.push(byte),
        }
        at += 1;
    }
    // All that is not ASCII is escaped.
    String::from_utf8(out.bytes).ok()
}

/// A path that is being written.
#[derive(Default)]
struct Written {
    bytes: Vec<u8>,
    /// Where a percent sign is that begins no escape.
    percent: Option<usize>,
}

impl Written {
    fn ends_with_slash(&self) -> bool {
        self.bytes.last() == Some(&b'/')
    }

    fn push_lone_percent(&mut self) {
        self.percent = Some(self.bytes.len());
        self.bytes.push(b'%');
    }

    fn push(&mut self, byte: u8) {
        self.bytes.push(byte);
        // What was unescaped must not make an escape with what is before it.
        if let Some(percent) = self.percent.filter(|percent| percent + 3 == self.bytes.len())
            && escape(&self.bytes[percent..]).is_some()
        {
            self.bytes.splice(percent + 1..percent + 1, *b"25");
        }
    }

    /// Goes up, from behind a slash.
    fn leave_segment(&mut self) {
        self.bytes.pop();
        let slash = self.bytes.iter().rposition(|byte| *byte == b'/');
        self.bytes.truncate(slash.unwrap_or_default());
        self.bytes.push(b'/');
        self.percent = self.percent.filter(|percent| *percent < self.bytes.len());
    }
}

/// The byte that an escape at the beginning of `rest` stands for.
fn escape(rest: &[u8]) -> Option<u8> {
    let digit = |at: usize| char::from(*rest.get(at)?).to_digit(16);
    let byte = digit(1)? * 16 + digit(2)?;
    u8::try_from(byte).ok().filter(|_| rest[0] == b'%')
}

/// What means the same escaped or not (RFC 3986, section 2.3).
const fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// What a path has only escaped (the URL standard's path percent-encode set, and what else Envoy escapes).
const fn is_escaped(byte: u8) -> bool {
    byte <= b' ' || byte >= 0x7f || matches!(byte, b'"' | b'<' | b'>' | b'`' | b'{' | b'}' | b'^' | b'|')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_stand_for_the_same_are_written_alike() {
        use PathNormalization::{Base, DecodeAndMergeSlashes, MergeSlashes, None};
        for (path, expected) in [
            ("/a/b", ["/a/b"; 4]),
            ("/", ["/"; 4]),
            ("/a/../admin", ["/a/../admin", "/admin", "/admin", "/admin"]),
            ("/a/./b/.", ["/a/./b/.", "/a/b/", "/a/b/", "/a/b/"]),
            ("/..", ["/..", "/", "/", "/"]),
            ("/../../x", ["/../../x", "/x", "/x", "/x"]),
            ("/a/%2e%2E/x", ["/a/%2e%2E/x", "/x", "/x", "/x"]),
            ("/a\\..\\x", ["/a\\..\\x", "/x", "/x", "/x"]),
            ("/a..b/.c", ["/a..b/.c"; 4]),
            ("/...", ["/..."; 4]),
            ("/x/..;a=b/admin", ["/x/..;a=b/admin", "/admin", "/admin", "/admin"]),
            ("/.;/x/..;", ["/.;/x/..;", "/", "/", "/"]),
            ("/a//b", ["/a//b", "/a//b", "/a/b", "/a/b"]),
            ("/a//../b", ["/a//../b", "/a/b", "/a/b", "/a/b"]),
            ("//", ["//"; 4]),
            ("//admin", ["//admin", "//admin", "/admin", "/admin"]),
            ("/admin//", ["/admin//", "/admin//", "/admin/", "/admin/"]),
            ("/a%2fb", ["/a%2fb", "/a%2fb", "/a%2fb", "/a/b"]),
            ("/a%2F..%5Cx", ["/a%2F..%5Cx", "/a%2F..%5Cx", "/a%2F..%5Cx", "/x"]),
            ("/a%252fb", ["/a%252fb"; 4]),
            ("/%61dmin", ["/%61dmin", "/admin", "/admin", "/admin"]),
            ("/%%41%41", ["/%%41%41", "/%25AA", "/%25AA", "/%25AA"]),
            ("/%%41g%", ["/%%41g%", "/%Ag%", "/%Ag%", "/%Ag%"]),
        ] {
            let modes = [None, Base, MergeSlashes, DecodeAndMergeSlashes];
            assert_eq!(
                modes.map(|mode| mode.apply(path).unwrap().into_owned()),
                expected,
                "{path}"
            );
        }
    }

    #[test]
    fn a_path_that_ends_within_itself_is_none() {
        assert_eq!(PathNormalization::Base.apply("/a%00b"), None);
        assert!(PathNormalization::None.apply("/a%00b").is_some());
    }

    /// Whatever comes, it is a path, and stays what it is.
    #[test]
    fn what_is_normal_is_left_alone() {
        let mut random = fastrand::Rng::with_seed(11);
        let pieces = [
            "/", "//", ".", "..", "%2e", "%2f", "%5c", "\\", "a", "%41", "%", "{", "ä", "~",
        ];
        for _ in 0..20_000 {
            let pieces: Vec<&str> = (0..random.usize(..8))
                .map(|_| pieces[random.usize(..pieces.len())])
                .collect();
            let path = format!("/{}", pieces.concat());
            for mode in [PathNormalization::Base, PathNormalization::MergeSlashes] {
                let once = mode.apply(&path).unwrap().into_owned();
                assert!(once.starts_with('/') && once.is_ascii(), "{path} {once}");
                assert_eq!(mode.apply(&once).unwrap(), once, "{path}");
            }
        }
    }
}
