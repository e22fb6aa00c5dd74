//! Media from the web. A name is resolved once, every address is checked, and the connection goes
//! to a checked one and nowhere else, so that a name that changes its address between check and
//! connection gains nothing. Redirects are followed by hand: each hop is a URL like the first.

use super::data_url::too_large;
use super::{FetchError, FetchOptions};
use bytes::Bytes;
use std::io::Read;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::mpsc;
use std::time::{Duration, Instant};
use ureq::http::{Response, Uri, header};
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{DefaultConnector, NextTimeout};
use ureq::{Agent, Body};
use url::{Host, Url};

/// Hops behind the first URL.
const MAX_REDIRECTS: usize = 5;

/// Addresses of a host and port.
pub(super) type LookUp<'a> = dyn Fn(&str, u16, Duration) -> Option<Vec<SocketAddr>> + 'a;

/// The content of an http or https URL.
pub(super) fn get(
    url: Url,
    options: &FetchOptions,
    deadline: Instant,
    look_up: &LookUp<'_>,
) -> Result<Bytes, FetchError> {
    let mut url = url;
    for _ in 0..=MAX_REDIRECTS {
        let addresses = checked(&url, options, deadline, look_up)?;
        let response = request(&url, addresses, left(deadline)?)?;
        let status = response.status().as_u16();
        match status {
            200 => return body(response, options, deadline),
            301 | 302 | 303 | 307 | 308 => {
                let to = response
                    .headers()
                    .get(header::LOCATION)
                    .and_then(|to| to.to_str().ok())
                    .and_then(|to| url.join(to).ok());
                url = to.ok_or_else(|| {
                    FetchError::new("the media server redirects without a valid URL")
                })?;
            }
            _ => {
                return Err(FetchError::new(format!(
                    "the media server answered with status {status}"
                )));
            }
        }
    }
    Err(FetchError::new(format!(
        "the media server redirects more than {MAX_REDIRECTS} times"
    )))
}

fn left(deadline: Instant) -> Result<Duration, FetchError> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(slow());
    }
    Ok(left)
}

fn slow() -> FetchError {
    FetchError::new("fetching the media took longer than --media-timeout")
}

/// The addresses that a URL may be fetched from: all that its host has, or none.
fn checked(
    url: &Url,
    options: &FetchOptions,
    deadline: Instant,
    look_up: &LookUp<'_>,
) -> Result<Vec<SocketAddr>, FetchError> {
    if !matches!(url.scheme(), "http" | "https") {
        return Err(FetchError::new(
            "the media server redirects to what is neither http nor https",
        ));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(FetchError::new("a URL with credentials is not fetched"));
    }
    let (Some(host), Some(port)) = (url.host(), url.port_or_known_default()) else {
        return Err(FetchError::new("the URL has no host"));
    };
    let name = host.to_string();
    let allowed = &options.allowed_domains;
    if !allowed.is_empty() && !allowed.iter().any(|one| one.eq_ignore_ascii_case(&name)) {
        return Err(FetchError::new(
            "this host is not in --allowed-media-domains",
        ));
    }
    let addresses = match host {
        Host::Ipv4(v4) => vec![SocketAddr::new(IpAddr::V4(v4), port)],
        Host::Ipv6(v6) => vec![SocketAddr::new(IpAddr::V6(v6), port)],
        Host::Domain(name) => look_up(name, port, left(deadline)?).unwrap_or_default(),
    };
    if addresses.is_empty() {
        return Err(FetchError::new("the URL's host can't be resolved"));
    }
    // One private address among public ones is a trick, too.
    if !addresses.iter().all(|a| options.private.allow(a.ip())) {
        return Err(FetchError::new(
            "the URL leads to an address that is not public: it is not fetched",
        ));
    }
    Ok(addresses)
}

/// The system's resolver, which knows no time-out, on a thread of its own.
pub(super) fn look_up(name: &str, port: u16, wait: Duration) -> Option<Vec<SocketAddr>> {
    let (sender, receiver) = mpsc::sync_channel(1);
    let name = name.to_owned();
    std::thread::Builder::new()
        .name("kiln-resolve".to_owned())
        .spawn(move || {
            let found = (name.as_str(), port).to_socket_addrs();
            let _ = sender.send(found.map(Iterator::collect).unwrap_or_default());
        })
        .ok()?;
    receiver.recv_timeout(wait).ok()
}

/// Answers with addresses that were checked, whatever is asked.
#[derive(Debug)]
struct Pinned(Vec<SocketAddr>);

impl Resolver for Pinned {
    fn resolve(
        &self,
        _: &Uri,
        _: &ureq::config::Config,
        _: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let mut out = self.empty();
        for address in self.0.iter().take(8) {
            out.push(*address);
        }
        Ok(out)
    }
}

/// One request, without redirects, proxies, cookies or a connection kept.
fn request(
    url: &Url,
    addresses: Vec<SocketAddr>,
    left: Duration,
) -> Result<Response<Body>, FetchError> {
    let config = Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .proxy(None)
        .timeout_global(Some(left))
        .max_response_header_size(32 << 10)
        .max_idle_connections(0)
        .user_agent(concat!("kiln/", env!("CARGO_PKG_VERSION")))
        .build();
    let agent = Agent::with_parts(config, DefaultConnector::default(), Pinned(addresses));
    agent.get(url.as_str()).call().map_err(|error| match error {
        ureq::Error::Timeout(_) => slow(),
        _ => FetchError::new("the media server can't be reached, or does not speak HTTP"),
    })
}

fn body(
    response: Response<Body>,
    options: &FetchOptions,
    deadline: Instant,
) -> Result<Bytes, FetchError> {
    let declared = response
        .headers()
        .get(header::CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if declared.is_some_and(|length| length > options.max_bytes as u64) {
        return Err(too_large(options.max_bytes));
    }
    let mut reader = response.into_body().into_reader();
    let (mut bytes, mut chunk) = (Vec::new(), vec![0; 64 << 10]);
    loop {
        // The client's own time-out covers a read; this one, a server that drips.
        left(deadline)?;
        match reader.read(&mut chunk) {
            Ok(0) => break,
            Ok(n) => bytes.extend_from_slice(&chunk[..n]),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => {
                left(deadline)?;
                return Err(FetchError::new("the media server broke off"));
            }
        }
        if bytes.len() > options.max_bytes {
            return Err(too_large(options.max_bytes));
        }
    }
    if bytes.is_empty() {
        return Err(FetchError::new("the media server sent nothing"));
    }
    Ok(bytes.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::io::Write;
    use std::net::TcpListener;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn url(text: &str) -> Url {
        Url::parse(text).unwrap()
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(5)
    }

    /// A server on the loopback address that answers each connection with the next text.
    fn server(answers: Vec<String>) -> (u16, Arc<AtomicUsize>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let hits = Arc::new(AtomicUsize::new(0));
        let seen = hits.clone();
        std::thread::spawn(move || {
            for answer in answers {
                let Ok((mut stream, _)) = listener.accept() else {
                    return;
                };
                seen.fetch_add(1, Ordering::SeqCst);
                let mut request = [0; 4096];
                let _ = stream.read(&mut request);
                let _ = stream.write_all(answer.as_bytes());
            }
        });
        (port, hits)
    }

    fn ok(body: &str) -> String {
        format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
    }

    fn options() -> FetchOptions {
        FetchOptions {
            private: "127.0.0.1".parse().unwrap(),
            max_bytes: 100,
            ..FetchOptions::default()
        }
    }

    #[test]
    fn a_name_is_resolved_once_and_its_address_pinned() {
        let (port, hits) = server(vec![ok("picture")]);
        let asked = Cell::new(0);
        // The second answer would be a private address: rebinding.
        let look_up = |_: &str, port: u16, _: Duration| {
            asked.set(asked.get() + 1);
            let address = if asked.get() == 1 {
                "127.0.0.1"
            } else {
                "127.0.0.2"
            };
            Some(vec![SocketAddr::new(address.parse().unwrap(), port)])
        };
        let got = get(
            url(&format!("http://rebind.example:{port}/x.png")),
            &options(),
            soon(),
            &look_up,
        );
        assert_eq!(got.unwrap().as_ref(), b"picture");
        assert_eq!((asked.get(), hits.load(Ordering::SeqCst)), (1, 1));
    }

    #[test]
    fn one_private_address_among_others_refuses_all() {
        let look_up = |_: &str, port: u16, _: Duration| {
            let address = |text: &str| SocketAddr::new(text.parse().unwrap(), port);
            Some(vec![address("1.1.1.1"), address("10.0.0.1")])
        };
        let error = get(url("http://two.example/"), &options(), soon(), &look_up).unwrap_err();
        assert!(error.message.contains("not public"), "{}", error.message);
    }

    #[test]
    fn every_spelling_of_a_private_address_is_seen_through() {
        let never = |_: &str, _: u16, _: Duration| None;
        for text in [
            "http://127.0.0.2/",
            "http://2130706434/",
            "http://0x7f000002/",
            "http://0177.0.0.2/",
            "http://127.2/",
            "http://[::1]/",
            "http://[::ffff:127.0.0.2]/",
            "http://[::ffff:7f00:2]/",
            "http://169.254.169.254/latest/meta-data",
            "http://example.com\\@127.0.0.2/"
                .replace("example.com\\@", "")
                .as_str(),
            "http://１２７.0.0.2/",
        ] {
            let error = get(url(text), &options(), soon(), &never).unwrap_err();
            assert!(
                error.message.contains("not public"),
                "{text}: {}",
                error.message
            );
        }
        for text in [
            "http://good.example@127.0.0.2/",
            "http://user:secret@good.example/",
        ] {
            let error = get(url(text), &options(), soon(), &never).unwrap_err();
            assert!(error.message.contains("credentials"), "{text}");
        }
        // The one parser takes `\` for `/`: the host is the part before it.
        let error = get(
            url("http://good.example\\@127.0.0.2/"),
            &options(),
            soon(),
            &never,
        );
        assert!(error.unwrap_err().message.contains("resolved"));
    }

    #[test]
    fn redirects_are_checked_hop_by_hop_and_counted() {
        let never = |_: &str, _: u16, _: Duration| None;
        let to = |where_to: &str| {
            format!(
                "HTTP/1.1 302 Found\r\nLocation: {where_to}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            )
        };
        let (inside, inner_hits) = server(vec![ok("secret")]);
        let (port, hits) = server(vec![to(&format!("http://127.0.0.2:{inside}/"))]);
        let from = url(&format!("http://127.0.0.1:{port}/"));
        let error = get(from, &options(), soon(), &never).unwrap_err();
        assert!(error.message.contains("not public"), "{}", error.message);
        assert_eq!(hits.load(Ordering::SeqCst), 1);
        assert_eq!(inner_hits.load(Ordering::SeqCst), 0, "no packet");

        let (port, hits) = server(vec![to("/again"); 20]);
        let from = url(&format!("http://127.0.0.1:{port}/"));
        let error = get(from, &options(), soon(), &never).unwrap_err();
        assert!(
            error.message.contains("redirects more than"),
            "{}",
            error.message
        );
        assert_eq!(hits.load(Ordering::SeqCst), MAX_REDIRECTS + 1);

        let (port, _) = server(vec![to("file:///etc/passwd")]);
        let from = url(&format!("http://127.0.0.1:{port}/"));
        let error = get(from, &options(), soon(), &never).unwrap_err();
        assert!(error.message.contains("neither http"), "{}", error.message);

        let (port, _) = server(vec![to("/there"), ok("picture")]);
        let from = url(&format!("http://127.0.0.1:{port}/"));
        assert_eq!(
            get(from, &options(), soon(), &never).unwrap().as_ref(),
            b"picture"
        );
    }

    #[test]
    fn bytes_time_and_hosts_have_bounds() {
        let never = |_: &str, _: u16, _: Duration| None;
        let fetch = |answer: &str, options: &FetchOptions, deadline| {
            let (port, _) = server(vec![answer.to_owned()]);
            get(
                url(&format!("http://127.0.0.1:{port}/")),
                options,
                deadline,
                &never,
            )
            .unwrap_err()
            .message
        };
        assert!(fetch(&ok(&"x".repeat(101)), &options(), soon()).contains("--media-max-bytes"));
        let undeclared = format!(
            "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{}",
            "x".repeat(101)
        );
        assert!(fetch(&undeclared, &options(), soon()).contains("--media-max-bytes"));
        assert!(
            fetch(
                "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
                &options(),
                soon()
            )
            .contains("404")
        );
        assert!(fetch("garbage", &options(), soon()).contains("HTTP"));
        let elsewhere = FetchOptions {
            allowed_domains: vec!["media.example".to_owned()],
            ..options()
        };
        assert!(fetch(&ok("x"), &elsewhere, soon()).contains("--allowed-media-domains"));

        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let silent = format!("http://{}/", listener.local_addr().unwrap());
        let began = Instant::now();
        let deadline = began + Duration::from_millis(300);
        let error = get(url(&silent), &options(), deadline, &never).unwrap_err();
        assert!(
            error.message.contains("--media-timeout"),
            "{}",
            error.message
        );
        assert!(began.elapsed() < Duration::from_secs(3));
    }
}
