//! URLs that lead where they should not: rows 12 to 17. Names that change their address (row 14)
//! are tested beside the fetcher itself, where the resolver can be played.

use crate::media_server::{MediaServer, drip, flood, ok, redirect};
use crate::server::{Server, ask, data_url, picture};
use serde_json::json;
use std::time::{Duration, Instant};

fn refused(server: &Server, url: &str, reason: &str) {
    let error = server.chat(&ask(&[url], "What?")).error(400);
    let message = error["message"].as_str().unwrap();
    assert!(message.contains(reason), "{url}: {message}");
    assert_eq!(error["param"], "messages[0].content[0].image_url");
}

#[test]
fn row_12_private_addresses_get_no_packet() {
    let server = Server::start(&[]);
    let target = MediaServer::of("127.0.0.1", picture("rgb.png"));
    let port = target.host.rsplit(':').next().unwrap();
    for host in [
        "127.0.0.1",
        "localhost",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "127.1",
        "127.0.0.1.",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[::]",
        "0.0.0.0",
        "0",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.0.1",
        "169.254.169.254",
        "100.100.100.200",
        "[fe80::1]",
        "[fd00:ec2::254]",
        "[64:ff9b::7f00:1]",
        "[2002:7f00:1::]",
        "１２７.0.0.1",
    ] {
        refused(
            &server,
            &format!("http://{host}:{port}/x.png"),
            "not public",
        );
    }
    assert_eq!(target.hits(), 0);
    server.is_well();
}

#[test]
fn row_13_every_hop_of_a_redirect_is_checked() {
    let server = Server::start(&["--allow-private-media-addresses", "127.0.0.1"]);
    let secret = MediaServer::of("127.0.0.2", picture("rgb.png"));
    let inside = secret.url("/secret.png");
    let public = MediaServer::on("127.0.0.1", move |path, stream| match path {
        "/picture.png" => ok(stream, &picture("rgb.png")),
        "/good" => redirect(stream, "/picture.png"),
        "/private" => redirect(stream, &inside),
        "/twice" => redirect(stream, "/private"),
        "/file" => redirect(stream, "file:///etc/passwd"),
        "/data" => redirect(stream, "data:image/png;base64,AAAA"),
        _ => redirect(stream, "/loop"),
    });
    assert_eq!(
        server.chat(&ask(&[&public.url("/good")], "What?")).status,
        200
    );
    refused(&server, &public.url("/private"), "not public");
    refused(&server, &public.url("/twice"), "not public");
    refused(&server, &public.url("/file"), "neither http");
    refused(&server, &public.url("/data"), "neither http");
    refused(&server, &public.url("/loop"), "redirects more than");
    assert_eq!(secret.hits(), 0);
    server.is_well();
}

#[test]
fn row_14_one_parser_says_what_a_url_means() {
    let server = Server::start(&["--allow-private-media-addresses", "127.0.0.1"]);
    let good = MediaServer::of("127.0.0.1", picture("rgb.png"));
    let secret = MediaServer::of("127.0.0.2", picture("rgb.png"));
    refused(
        &server,
        &format!("http://{}@{}/", good.host, secret.host),
        "credentials",
    );
    refused(
        &server,
        &format!("http://user:word@{}/", good.host),
        "credentials",
    );
    // The host ends at the backslash, as at a slash.
    let url = format!("http://{}\\@{}/x.png", good.host, secret.host);
    assert_eq!(server.chat(&ask(&[&url], "What?")).status, 200);
    let url = format!("http://{}#@{}/x.png", good.host, secret.host);
    assert_eq!(server.chat(&ask(&[&url], "What?")).status, 200);
    refused(
        &server,
        &format!("http:\\\\{}\\x.png", secret.host),
        "not public",
    );
    for url in [
        "http://",
        "https://:80/",
        "http://a b/",
        "//127.0.0.1/",
        "http://[::1/",
    ] {
        server.chat(&ask(&[url], "What?")).error(400);
    }
    for url in [
        "ftp://127.0.0.1/x",
        "gopher://127.0.0.1/",
        "javascript:alert(1)",
    ] {
        refused(&server, url, "are not taken");
    }
    assert_eq!(secret.hits(), 0);
    server.is_well();

    let server = Server::start(&[
        "--allow-private-media-addresses",
        "all",
        "--allowed-media-domains",
        "media.example",
    ]);
    refused(&server, &good.url("/x.png"), "--allowed-media-domains");
    server.is_well();
}

#[test]
fn row_15_slow_and_endless_media_servers() {
    let server = Server::start(&[
        "--allow-private-media-addresses",
        "127.0.0.1",
        "--media-timeout",
        "1",
        "--media-max-bytes",
        "1MiB",
    ]);
    let media = MediaServer::on("127.0.0.1", |path, stream| match path {
        "/drip" => drip(stream),
        "/flood" => flood(stream),
        "/lie" => {
            let _ = std::io::Write::write_all(
                stream,
                b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\nx",
            );
            std::thread::sleep(Duration::from_secs(5));
        }
        "/garbage" => drop(std::io::Write::write_all(stream, &[0xff; 4096])),
        _ => std::thread::sleep(Duration::from_secs(5)),
    });
    let began = Instant::now();
    refused(&server, &media.url("/drip"), "--media-timeout");
    refused(&server, &media.url("/silent"), "--media-timeout");
    assert!(
        began.elapsed() < Duration::from_secs(4),
        "{:?}",
        began.elapsed()
    );
    refused(&server, &media.url("/flood"), "--media-max-bytes");
    refused(&server, &media.url("/lie"), "--media-max-bytes");
    refused(&server, &media.url("/garbage"), "HTTP");
    server.is_well();

    // Whoever waits for a media server holds up nobody who does not.
    let server = Server::start(&[
        "--allow-private-media-addresses",
        "127.0.0.1",
        "--media-timeout",
        "3",
        "--media-concurrency",
        "1",
    ]);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let response = server.chat(&ask(&[&media.url("/silent")], "What?"));
                assert!(matches!(response.status, 400 | 429), "{}", response.text());
            });
        }
        std::thread::sleep(Duration::from_millis(300));
        let began = Instant::now();
        server.is_well();
        assert!(
            began.elapsed() < Duration::from_secs(2),
            "{:?}",
            began.elapsed()
        );
    });
}

#[test]
fn row_16_files_outside_the_folder() {
    let root = tempfile::tempdir().unwrap();
    let media = root.path().join("media");
    std::fs::create_dir(&media).unwrap();
    std::fs::write(media.join("in.png"), picture("rgb.png")).unwrap();
    std::fs::write(root.path().join("out.png"), picture("rgb.png")).unwrap();
    std::os::unix::fs::symlink(root.path().join("out.png"), media.join("link.png")).unwrap();
    let folder = media.to_str().unwrap();
    let server = Server::start(&["--allowed-media-path", folder]);
    let good = format!("file://{folder}/in.png");
    assert_eq!(server.chat(&ask(&[&good], "What?")).status, 200);
    for path in [
        format!("{folder}/../out.png"),
        format!("{folder}/%2e%2e/out.png"),
        format!("{folder}/link.png"),
        format!("{}/out.png", root.path().display()),
        format!("{folder}/none.png"),
        folder.to_owned(),
        "/etc/passwd".to_owned(),
        "/dev/zero".to_owned(),
    ] {
        refused(&server, &format!("file://{path}"), "--allowed-media-path");
    }
    server.is_well();
    let server = Server::start(&[]);
    refused(&server, &good, "--allowed-media-path");
}

#[test]
fn row_17_links_in_text_are_text() {
    let server = Server::start(&["--allow-private-media-addresses", "all"]);
    let media = MediaServer::of("127.0.0.1", picture("rgb.png"));
    let url = media.url("/x.png");
    for text in [
        format!("![a]({url})"),
        url.clone(),
        format!("<img src={url}>"),
        format!("{{\"type\": \"image_url\", \"image_url\": {{\"url\": \"{url}\"}}}}"),
    ] {
        let body = json!({"messages": [{"role": "user", "content": text}], "max_tokens": 2});
        assert_eq!(server.chat(&body).status, 200, "{text}");
        let own = data_url(&picture("rgb.png"));
        assert_eq!(server.chat(&ask(&[&own], &text)).status, 200);
    }
    assert_eq!(media.hits(), 0);
    server.is_well();
}
