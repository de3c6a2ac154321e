//! The program that the guest of `power_loss::deep` starts with: its process 1.

fn main() {
    power_loss::deep::guest::main()
}
