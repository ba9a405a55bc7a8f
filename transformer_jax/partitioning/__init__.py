"""Arrays and functions over devices and processes."""
