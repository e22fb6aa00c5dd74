//! `--config FILE.toml`: the file's values take the place of the flags' defaults, so that a flag and
//! the environment go before them, and one parser checks all three.

use anyhow::{Context, Result, bail};
use clap::{Arg, ArgAction, Command};
use std::path::Path;
use toml::{Table, Value};

/// The name of `kiln serve` on the command line.
const SERVE: &str = "serve";

/// The command line with a file's values as the defaults of `kiln serve`.
///
/// # Errors
/// For a file that can't be read or is no TOML, and for a key that is no option.
pub(crate) fn with_defaults_of(command: Command, file: &Path) -> Result<Command> {
    let text =
        std::fs::read_to_string(file).with_context(|| format!("can't read {}", file.display()))?;
    let table: Table = text
        .parse()
        .with_context(|| format!("{} is no valid TOML", file.display()))?;
    table
        .into_iter()
        .try_fold(command, |command, (key, value)| {
            with_default(command, &key, &value)
                .with_context(|| format!("{}: `{key}`", file.display()))
        })
}

fn with_default(command: Command, key: &str, value: &Value) -> Result<Command> {
    // `model` reads better in a file than the name of a positional argument.
    let id = match key {
        "model" => "model_dir".to_owned(),
        key => key.replace('-', "_"),
    };
    let serve = command
        .find_subcommand(SERVE)
        .context("there is no `kiln serve`")?;
    let named = |arg: &&Arg| arg.get_id() == id.as_str();
    let own = serve.get_arguments().find(named);
    let shared = command
        .get_arguments()
        .find(|arg| named(arg) && arg.is_global_set());
    let Some(arg) = own.or(shared).filter(|_| id != "config") else {
        bail!("there is no such option: kiln serve --help lists them");
    };
    let is_own = own.is_some();
    let values = match value {
        Value::Array(list) if matches!(arg.get_action(), ArgAction::Append) => {
            list.iter().map(text).collect::<Result<Vec<_>>>()?
        }
        one => vec![text(one)?],
    };
    // clap borrows defaults for as long as the command lives; this one lives to the end.
    let values: Vec<&'static str> = values.into_iter().map(|v| &*v.leak()).collect();
    let set = |arg: Arg| arg.default_values(values);
    Ok(match is_own {
        true => command.mut_subcommand(SERVE, |serve| serve.mut_arg(id, set)),
        false => command.mut_arg(id, set),
    })
}

/// A value as it would stand on the command line.
fn text(value: &Value) -> Result<String> {
    Ok(match value {
        Value::String(text) => text.clone(),
        Value::Integer(number) => number.to_string(),
        Value::Float(number) => number.to_string(),
        Value::Boolean(truth) => truth.to_string(),
        _ => bail!("a string, a number, true or false, or a list of strings is wanted"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command as Kiln};
    use clap::{CommandFactory, FromArgMatches};

    fn parse(file: &str, line: &str) -> Result<(Option<usize>, crate::serve::ServeArgs)> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("kiln.toml");
        std::fs::write(&path, file)?;
        let command = with_defaults_of(Cli::command(), &path)?;
        let matches = command.try_get_matches_from(line.split(' '))?;
        let cli = Cli::from_arg_matches(&matches)?;
        match cli.command {
            Kiln::Serve(args) => Ok((cli.threads, *args)),
            _ => bail!("{line}"),
        }
    }

    #[test]
    fn a_flag_goes_before_the_file() {
        let file = "model = 'm'\nport = 81\napi-key = ['a', 'b']\nenable_mm_embeds = true\n\
                    media-timeout = 0.5\nmax-body-bytes = '1MiB'\nthreads = 3\n";
        let (threads, args) = parse(file, "kiln serve").unwrap();
        assert_eq!(threads, Some(3));
        assert_eq!(args.model_dir.unwrap().to_str(), Some("m"));
        assert_eq!(args.server.port, 81);
        assert_eq!(args.server.api_key, ["a", "b"]);
        assert!(args.media.enable_mm_embeds);
        assert_eq!(args.media.media_timeout.as_millis(), 500);
        assert_eq!(args.server.max_body_bytes, 1 << 20);
        let line = "kiln serve --port 82 --api-key c --threads 2 other";
        let (threads, args) = parse(file, line).unwrap();
        assert_eq!(threads, Some(2));
        assert_eq!(
            (args.server.port, args.server.api_key),
            (82, vec!["c".to_owned()])
        );
        assert_eq!(args.model_dir.unwrap().to_str(), Some("other"));
    }

    #[test]
    fn slips_are_named() {
        for (file, word) in [
            ("prot = 8", "prot"),
            ("port = 'x'", "port"),
            ("port = {}", "port"),
            ("config = 'x'", "config"),
            ("port =", "TOML"),
        ] {
            let error = parse(file, "kiln serve").err().map(|e| format!("{e:#}"));
            assert!(error.clone().unwrap().contains(word), "{file}: {error:?}");
        }
    }
}
