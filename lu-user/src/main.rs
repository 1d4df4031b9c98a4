//! The command `lu`.
fn main() {
    let command: Vec<std::ffi::OsString> = std::env::args_os().skip(1).collect();
    let r = lu_user::emulate::run_command(lu_user::emulate::Options::default(), &command);
    match r {
        Ok(code) => std::process::exit(code),
        Err(e) => {
            eprintln!("{e}");
            std::process::exit(1)
        }
    }
}
