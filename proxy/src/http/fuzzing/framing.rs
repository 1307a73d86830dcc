//! A reader of HTTP/1.1 that knows one way to frame a message, and takes any other for what it is to others: a way in.

/// What was read of a request that was written by us.
#[derive(Debug, PartialEq, Eq)]
pub struct Read {
    /// The method and the target.
    pub line: (String, String),
    /// Its body.
    pub body: Vec<u8>,
    /// How many bytes it took.
    pub length: usize,
}

/// Reads one request; none while it has not ended.
///
/// # Panics
/// When others could read it in another way.
pub fn read(bytes: &[u8]) -> Option<Read> {
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")?;
    let head = str::from_utf8(&bytes[..end])
        .map_or_else(|_| String::from_utf8_lossy(&bytes[..end]).into_owned(), str::to_owned);
    let mut lines = head.split("\r\n");
    let words: Vec<&str> = lines.next().unwrap_or_default().split(' ').collect();
    let [method, target, "HTTP/1.1"] = words[..] else {
        panic!("no line of a request: {words:?}");
    };
    let mut named: Vec<(&str, &str)> = Vec::new();
    for line in lines {
        assert!(!line.contains(['\r', '\n', '\0']), "{line:?}");
        let (name, value) = line.split_once(':').unwrap_or_else(|| panic!("no field: {line:?}"));
        let is_token = !name.is_empty()
            && name
                .bytes()
                .all(|b| b.is_ascii_graphic() && !b"()<>@,;:\\\"/[]?={}".contains(&b));
        assert!(is_token, "no name: {line:?}");
        named.push((name, value.trim_matches([' ', '\t'])));
    }
    let all = |wanted: &str| -> Vec<&str> {
        let of_name = named.iter().filter(|(name, _)| name.eq_ignore_ascii_case(wanted));
        of_name.map(|(_, value)| *value).collect()
    };
    assert_eq!(all("host").len(), 1, "{head:?}");
    let rest = &bytes[end + 4..];
    let (body, length) = match (&all("transfer-encoding")[..], &all("content-length")[..]) {
        ([], []) => (Vec::new(), 0),
        (["chunked"], []) => chunks(rest)?,
        ([], [length]) => {
            assert!(
                !length.is_empty() && length.bytes().all(|digit| digit.is_ascii_digit()),
                "{length:?}"
            );
            let length = length.parse().unwrap_or(usize::MAX);
            (rest.get(..length)?.to_vec(), length)
        }
        other => panic!("framed in more ways than one: {other:?}"),
    };
    Some(Read {
        line: (method.to_owned(), target.to_owned()),
        body,
        length: end + 4 + length,
    })
}

/// The chunks of a body, and how many bytes they and what is around them take.
fn chunks(bytes: &[u8]) -> Option<(Vec<u8>, usize)> {
    let (mut body, mut at) = (Vec::new(), 0);
    loop {
        let line = line(&bytes[at..])?;
        assert!(
            !line.is_empty() && line.bytes().all(|digit| digit.is_ascii_hexdigit()),
            "{line:?}"
        );
        at += line.len() + 2;
        let size = usize::from_str_radix(&line, 16).expect("hexadecimal digits");
        if size == 0 {
            return Some((body, at + trailers(&bytes[at..])?));
        }
        body.extend_from_slice(bytes.get(at..at + size)?);
        at += size;
        assert!(
            bytes.len() < at + 2 || &bytes[at..at + 2] == b"\r\n",
            "a chunk ends with its size"
        );
        at += 2;
        if bytes.len() < at {
            return None;
        }
    }
}

fn trailers(bytes: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        let line = line(&bytes[at..])?;
        at += line.len() + 2;
        if line.is_empty() {
            return Some(at);
        }
    }
}

fn line(bytes: &[u8]) -> Option<String> {
    let end = bytes.windows(2).position(|two| two == b"\r\n")?;
    Some(bytes[..end].iter().map(|byte| *byte as char).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_read_to_its_end_and_no_further() {
        let request = b"POST /a HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
        let read_of = read(request).unwrap();
        assert_eq!((read_of.body, read_of.length), (b"abc".to_vec(), request.len()));
        assert!((0..request.len()).all(|end| read(&request[..end]).is_none()));
    }

    #[test]
    #[should_panic(expected = "framed in more ways than one")]
    fn two_lengths_are_noticed() {
        read(b"POST /a HTTP/1.1\r\nhost: h\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab");
    }
}
