"""A cloud of folders and processes, for the tests of launch/pod.sh."""
