"""The commands. Installed they are the package `vvlm`; in a checkout they are `tools`, too."""
