//! `file://` URLs: files below one folder that the operator names, after every link is followed.

use super::data_url::too_large;
use super::{FetchError, FetchOptions};
use bytes::Bytes;
use std::fs::{self, File};
use std::io::Read;
use url::Url;

/// One answer for all that can't be read: what exists elsewhere is nobody's business.
fn refused() -> FetchError {
    FetchError::new("this file can't be read: it must be a file below --allowed-media-path")
}

pub(super) fn read(url: &Url, options: &FetchOptions) -> Result<Bytes, FetchError> {
    let Some(folder) = &options.allowed_path else {
        return Err(FetchError::new(
            "`file:` URLs are off: start with --allowed-media-path",
        ));
    };
    let folder = fs::canonicalize(folder).map_err(|_| refused())?;
    let path = url.to_file_path().map_err(|()| refused())?;
    let path = fs::canonicalize(path).map_err(|_| refused())?;
    // A pipe or a device would be opened for ever.
    if !path.starts_with(&folder) || !path.is_file() {
        return Err(refused());
    }
    let file = File::open(&path).map_err(|_| refused())?;
    let mut bytes = Vec::new();
    file.take(options.max_bytes as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(|_| refused())?;
    if bytes.len() > options.max_bytes {
        return Err(too_large(options.max_bytes));
    }
    Ok(bytes.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_below_the_folder_are_read() {
        let root = tempfile::tempdir().unwrap();
        let inside = root.path().join("media");
        fs::create_dir_all(inside.join("deep")).unwrap();
        fs::write(inside.join("deep/a b.png"), b"picture").unwrap();
        fs::write(root.path().join("secret"), b"secret").unwrap();
        fs::create_dir(root.path().join("media2")).unwrap();
        fs::write(root.path().join("media2/x"), b"neighbour").unwrap();
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink(root.path().join("secret"), inside.join("link")).unwrap();
            std::os::unix::fs::symlink(inside.join("deep/a b.png"), inside.join("good")).unwrap();
        }
        let options = FetchOptions {
            allowed_path: Some(inside.clone()),
            max_bytes: 7,
            ..FetchOptions::default()
        };
        let get = |path: &str| read(&Url::parse(&format!("file://{path}")).unwrap(), &options);
        let media = inside.display();
        for good in [
            format!("{media}/deep/a%20b.png"),
            format!("{media}/deep/../deep/a%20b.png"),
            #[cfg(unix)]
            format!("{media}/good"),
        ] {
            assert_eq!(get(&good).unwrap().as_ref(), b"picture", "{good}");
        }
        for bad in [
            format!("{media}/../secret"),
            format!("{media}/%2e%2e/secret"),
            format!("{}/secret", root.path().display()),
            format!("{}/media2/x", root.path().display()),
            format!("{media}/link"),
            format!("{media}/none"),
            format!("{media}/deep"),
            format!("{media}"),
            "/etc/passwd".to_owned(),
            "/dev/zero".to_owned(),
            format!("elsewhere{media}/good"),
        ] {
            let error = get(&bad).unwrap_err();
            assert_eq!(error, refused(), "{bad}");
        }
        fs::write(inside.join("large"), b"too large").unwrap();
        let large = get(&format!("{media}/large")).unwrap_err();
        assert!(large.message.contains("--media-max-bytes"));
        let off = FetchOptions::default();
        let url = Url::parse("file:///etc/passwd").unwrap();
        assert!(
            read(&url, &off)
                .unwrap_err()
                .message
                .contains("--allowed-media-path")
        );
    }
}
