; The Windows installer: per user, no elevation. All decisions are apply.py's; this unpacks, calls it, and writes the
; shortcut and the two registry keys of manifest.toml. PATH and Startup are not touched.
Unicode true
Target amd64-unicode
ManifestLongPathAware true
ManifestDPIAware true
RequestExecutionLevel user
Name "edgespec"
OutFile "${OUTPUT}"
InstallDir "$LOCALAPPDATA\Programs\edgespec"
SetCompressor zlib
ShowInstDetails show
AllowRootDirInstall false
BrandingText "edgespec ${VERSION}"
VIProductVersion "${VERSION}.0"
VIAddVersionKey ProductName "edgespec"
VIAddVersionKey FileDescription "edgespec"
VIAddVersionKey FileVersion "${VERSION}"
VIAddVersionKey CompanyName "${PUBLISHER}"
VIAddVersionKey LegalCopyright "Apache-2.0"

!include "LogicLib.nsh"
!include "FileFunc.nsh"
!define UNINSTALL "Software\Microsoft\Windows\CurrentVersion\Uninstall\edgespec"
!define APP_PATH "Software\Microsoft\Windows\CurrentVersion\App Paths\edgespec.exe"

Page directory
Page instfiles
UninstPage uninstConfirm
UninstPage instfiles

Section
  ; The payload lies beside the program while it is made, so that both are on one disk.
  SetOutPath "$INSTDIR\edgespec.setup"
  File /r /x wheels /x model "${PAYLOAD}\*.*"
  SetCompress off  ; wheels are compressed already
  SetOutPath "$INSTDIR\edgespec.setup\wheels"
  File "${PAYLOAD}\wheels\*.*"
  SetOutPath "$INSTDIR\edgespec.setup\model"
  File "${PAYLOAD}\model\*.*"
  SetCompress auto
  nsExec::ExecToLog '"$INSTDIR\edgespec.setup\python\python.exe" -I "$INSTDIR\edgespec.setup\apply.py" install "$INSTDIR\edgespec.setup" "$INSTDIR"'
  Pop $0
  SetOutPath "$TEMP"
  RMDir /r "$INSTDIR\edgespec.setup"
  ${If} $0 != 0
    RMDir "$INSTDIR"
    DetailPrint "Nothing was installed."
    IfSilent +2
      MessageBox MB_ICONSTOP "edgespec was not installed. The list above says why."
    SetErrorLevel 2
    Abort
  ${EndIf}
  WriteUninstaller "$INSTDIR\uninstall.exe"
  SetOutPath "$INSTDIR"  ; where the shortcut's program starts: in $TEMP lie files of anybody
  IfFileExists "$INSTDIR\bin\edgespec-chat.cmd" 0 +3
    CreateShortcut "$SMPROGRAMS\edgespec.lnk" "$INSTDIR\app\python\pythonw.exe" "-I -m edgespec.server.window"
    Goto +2
  CreateShortcut "$SMPROGRAMS\edgespec.lnk" "$SYSDIR\cmd.exe" '/k ""$INSTDIR\bin\edgespec.cmd" chat"'
  WriteRegStr HKCU "${APP_PATH}" "" "$INSTDIR\bin\edgespec.cmd"
  WriteRegStr HKCU "${UNINSTALL}" "DisplayName" "edgespec"
  WriteRegStr HKCU "${UNINSTALL}" "DisplayVersion" "${VERSION}"
  WriteRegStr HKCU "${UNINSTALL}" "Publisher" "${PUBLISHER}"
  WriteRegStr HKCU "${UNINSTALL}" "InstallLocation" "$INSTDIR"
  WriteRegStr HKCU "${UNINSTALL}" "UninstallString" '"$INSTDIR\uninstall.exe"'
  WriteRegStr HKCU "${UNINSTALL}" "QuietUninstallString" '"$INSTDIR\uninstall.exe" /S'
  WriteRegDWORD HKCU "${UNINSTALL}" "EstimatedSize" ${SIZE_KB}
  WriteRegDWORD HKCU "${UNINSTALL}" "NoModify" 1
SectionEnd

Section "Uninstall"
  ; A program cannot remove the Python that runs it, so apply.py only asks a running server to end.
  nsExec::ExecToLog '"$INSTDIR\app\python\python.exe" -I "$INSTDIR\app\apply.py" stop'
  Pop $0
  ${If} $0 != 0
    SetErrorLevel 2
    Abort
  ${EndIf}
  RMDir /r "$INSTDIR\app.old"
  ${If} ${FileExists} "$INSTDIR\app\*.*"
    ClearErrors
    Rename "$INSTDIR\app" "$INSTDIR\app.old"  ; Windows refuses while a program in it runs: nothing is removed yet
    ${If} ${Errors}
      DetailPrint "Nothing was removed: close edgespec, then try again."
      IfSilent +2
        MessageBox MB_ICONSTOP "edgespec is still running. Close its windows, then remove it again."
      SetErrorLevel 2
      Abort
    ${EndIf}
  ${EndIf}
  RMDir /r "$INSTDIR\app.new"
  RMDir /r "$INSTDIR\app.old"
  Delete "$INSTDIR\bin\edgespec*.cmd"  ; a user may have put other programs beside them
  RMDir "$INSTDIR\bin"
  Delete "$INSTDIR\installed.json"
  Delete "$INSTDIR\uninstall.exe"
  RMDir "$INSTDIR"
  Delete "$SMPROGRAMS\edgespec.lnk"
  DeleteRegKey HKCU "${APP_PATH}"
  DeleteRegKey HKCU "${UNINSTALL}"
  ${GetParameters} $1
  ClearErrors
  ${GetOptions} $1 "/PURGE" $2
  ${If} ${Errors}
    DetailPrint "Kept models and chats: $LOCALAPPDATA\edgespec"
  ${Else}
    RMDir /r "$LOCALAPPDATA\edgespec"
  ${EndIf}
SectionEnd
