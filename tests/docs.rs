//! Holds what the documentation says against the repository: links lead somewhere, and commands are understood.
#![allow(clippy::unwrap_used, clippy::panic)] // a test says what is wrong by failing
use std::{
    fs,
    path::{Path, PathBuf},
};

use autounseal::cli::Cli;
use clap::Parser;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Every page, but for what is built or fetched.
fn pages(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() && !name.starts_with('.') && name != "target" {
            pages(&path, into);
        } else if path.extension().is_some_and(|end| end == "md") {
            into.push(path);
        }
    }
}

fn all_pages() -> Vec<(PathBuf, String)> {
    let mut paths = Vec::new();
    pages(&root(), &mut paths);
    assert!(paths.len() > 15, "the pages were not found");
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).unwrap();
        (path, text)
    };
    paths.into_iter().map(read).collect()
}

/// The anchor that a heading gets.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().to_lowercase();
    let kept = kept.chars().filter(|c| c.is_alphanumeric() || "-_ ".contains(*c));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[test]
fn every_link_of_the_pages_leads_somewhere() {
    let mut wrong = Vec::new();
    for (page, text) in all_pages() {
        for part in text.split("](").skip(1) {
            let link = part.split([')', ' ', '\n']).next().unwrap();
            if link.is_empty() || link.contains(':') {
                continue;
            }
            let (path, heading) = link.split_once('#').unwrap_or((link, ""));
            let target = if path.is_empty() {
                page.clone()
            } else {
                page.parent().unwrap().join(path)
            };
            let found = target.exists()
                && (heading.is_empty()
                    || fs::read_to_string(&target)
                        .unwrap()
                        .lines()
                        .filter(|line| line.starts_with('#'))
                        .any(|line| anchor(line.trim_start_matches('#')) == heading));
            if !found {
                wrong.push(format!("{}: {link}", page.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// The words of a command up to where the shell takes over again.
fn words(command: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quote = None;
    for c in command.chars() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (None, '\'' | '"') => quote = Some(c),
            (None, '|' | ';' | '&' | '>' | '#' | ')' | '`') => break,
            (None, c) if c.is_whitespace() => words.push(String::new()),
            (_, c) => words.last_mut().unwrap().push(c),
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

#[test]
fn every_command_line_of_the_pages_is_understood() {
    let (mut tried, mut wrong) = (0, Vec::new());
    for (page, text) in all_pages() {
        for block in text.split("```sh\n").skip(1) {
            let block = block.split("```").next().unwrap().replace("\\\n", " ");
            for line in block.lines() {
                // Where the shell begins a command, and no word inside of another's.
                let begins = |at: &usize| {
                    let before = line[..*at].trim_end();
                    before.is_empty() || before.ends_with(['|', '&', ';', '('])
                };
                let starts = line.match_indices("autounseal ").map(|(at, _)| at);
                for start in starts.filter(begins) {
                    tried += 1;
                    if let Err(error) = Cli::try_parse_from(words(&line[start..])) {
                        let said = error.to_string();
                        wrong.push(format!("{}: {line}\n{said}", page.display()));
                    }
                }
            }
        }
    }
    assert!(tried > 10, "{tried}");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
